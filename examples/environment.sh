#!/bin/sh
# Environments for the examples, on top of the package's own (`make test` makes that), so that PyTorch is not installed
# again:   sh examples/environment.sh frameworks   makes .venv/frameworks   (DeepSpeed, Accelerate, PEFT)
#          sh examples/environment.sh torchtitan   makes .venv/torchtitan   (it needs older `datasets`)
#          sh examples/environment.sh cluster      makes .venv/cluster      (the SLURM plugin)
#          sh examples/environment.sh metadata     makes .venv/metadata     (validators of CITATION.cff and of licences)
set -eu
cd "$(dirname "$0")/.."
name=$1
python=.venv/bin/python
packages=$($python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
if [ ! -f ".venv/$name/.installed" ] || [ pyproject.toml -nt ".venv/$name/.installed" ]; then
  $python -m venv --clear --without-pip ".venv/$name"
  own=$(".venv/$name/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  echo "$packages" > "$own/base.pth"
  export DS_BUILD_OPS=0 DS_ACCELERATOR=cpu # DeepSpeed's compiled extras are for GPUs
  $python -m pip --python ".venv/$name/bin/python" install --quiet --no-compile --no-build-isolation -e ".[$name]"
  touch ".venv/$name/.installed"
fi
