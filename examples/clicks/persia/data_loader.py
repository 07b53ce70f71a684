import os

from clicks import batches
from persia.ctx import DataCtx

with DataCtx() as ctx:
    for batch in batches(os.environ["DATA"], "train", requires_grad=True):
        ctx.send_data(batch)
