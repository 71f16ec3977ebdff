#!/bin/sh
# One run on the processes of one node, or of several when called on each of them with the same arguments:
#   NPROC=8 launchers/torchrun.sh method=lpo hardware=ddp
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 NPROC=8 RUN=outputs/two launchers/torchrun.sh method=lpo hardware=ddp
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=node0 NPROC=8 RUN=outputs/two launchers/torchrun.sh method=lpo hardware=ddp
# RUN is the run folder, on a file system that the nodes share; called again with it, the run goes on where it was.
# On one node `lpo-train hardware=ddp hardware.devices=8` does the same.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$(dirname "$here")/.venv/bin/python}
nodes=${NNODES:-1}
if [ "$nodes" -gt 1 ]; then
  : "${RUN:?the run folder, the same on every node}" "${MASTER_ADDR:?the name of node 0}" "${NODE_RANK:?0 to NNODES - 1}"
fi
run=${RUN:-outputs/torchrun/$(date +%Y-%m-%d_%H-%M-%S)}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" -m torch.distributed.run --nnodes="$nodes" --node-rank="${NODE_RANK:-0}" --nproc-per-node="${NPROC:-1}" \
  --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${MASTER_PORT:-29500}" \
  "$here/train.py" "$@" hardware.devices="${NPROC:-1}" hardware.num_nodes="$nodes" "hydra.run.dir=\"$run\""
