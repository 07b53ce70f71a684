"""Measures what the planner calculates with, on this machine, by the product's own classes.

Owns: `satrap calibrate`'s measurements, from a row in memory to a step of the job's own network.
May import: everything but launch and cli. Must never: be imported by what trains; publish a figure that it did not
measure. A server that it starts is on loopback, and ends with it.
"""

from satrap.calibrate.measuring import calibrate

__all__ = ["calibrate"]
