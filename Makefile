# make report: environment, then everything of the laptop tier, then the report.   make test: environment, then the fast tests.
# Works with GNU make 3.81 and BSD tools (macOS). Nothing but Python >= 3.11 has to be there.

VENV = .venv
PYTHON =
CORES = all
TIER = laptop
# torch comes from PyTorch's CPU index on Linux without a GPU (its builds end in +cpu, which pip prefers), else from
# pip's own index (several GB with CUDA). `make TORCH_INDEX=` (or an empty variable of that name) asks only the latter.
TORCH_INDEX ?= $(shell if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then echo https://download.pytorch.org/whl/cpu; fi)
TORCH = torch==2.13.0
STAMP = $(VENV)/.installed
# Python keeps the bytecode of what it imports, also where images forbid it: without, each of some hundred processes compiles
# PyTorch's sources anew, which takes 3 s.
unexport PYTHONDONTWRITEBYTECODE
# In a folder with an umlaut, pip's editable install and then Python's own start fail where LC_ALL asks for ASCII.
export LC_ALL := $(if $(filter C POSIX,$(LC_ALL)),C.UTF-8,$(LC_ALL))
# For the recipes, the environment's programs come first: rules call `python`.
RUN = PATH="$(CURDIR)/$(VENV)/bin:$$PATH"

.PHONY: report test slow lint docs lock clean

report: $(STAMP)
	@$(RUN) sh -c 'if snakemake --cores $(CORES) --config tier=$(TIER); then \
	    echo "report: reports/$(TIER)/index.html"; \
	    if [ "$(TIER)" = laptop ]; then \
	      page=$$(lowmem report --archived --tier overnight) || exit 1; \
	      echo "what a night of training decides, drawn from archived records: $$page"; fi; \
	  else \
	    snakemake --cores 1 report_so_far --config tier=$(TIER); \
	    echo "something failed (see above); what there is: reports/$(TIER)/so_far/index.html" >&2; exit 1; \
	  fi'

test: $(STAMP)
	@$(RUN) python -m pytest

slow: $(STAMP)
	@$(RUN) python -m pytest -m slow

lint: $(STAMP)
	@$(RUN) sh -c 'ruff check . && ruff format --check . && snakefmt --check Snakefile workflow && snakemake --lint'

# Pages of the public API, from its docstrings: docs/api/index.html.
docs: $(STAMP)
	@$(RUN) sh -c 'python -m pip install --quiet --no-compile "pdoc>=16" && python docs/build.py'

# One stamp file: a second make does not install again. It is made anew when the lock or the package's own file changes.
$(STAMP): requirements.lock pyproject.toml
	@if [ "$$(uname -s)-$$(uname -m)" = Darwin-x86_64 ]; then \
	  echo "make: PyTorch $(TORCH) has no wheel for Intel Macs; use Linux or a Mac with Apple silicon" >&2; exit 1; fi
	@found=; \
	for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python; do \
	  if "$$python" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; then found=$$python; break; fi; \
	  if [ -n "$(PYTHON)" ]; then break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "make: no Python 3.11, 3.12 or 3.13 with venv found; install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; fi; \
	test -x $(VENV)/bin/python || "$$found" -m venv $(VENV)
	@echo "make: installing into $(VENV) (some minutes, once); 1 of 3: $(TORCH), about 200 MB, with CUDA several GB"
	@index="$(TORCH_INDEX)"; $(VENV)/bin/python -m pip install --quiet --no-compile $${index:+--retries 1 --extra-index-url "$$index"} "$(TORCH)"
	@echo "make: 2 of 3: the pipeline's packages, $$(grep -c '^[a-z0-9].*==' requirements.lock) of them, pinned by hash"
	@$(VENV)/bin/python -m pip install --quiet --no-compile --require-hashes -r requirements.lock
	@echo "make: 3 of 3: lowmem itself"
	@$(VENV)/bin/python -m pip install --quiet --no-deps -e .
	@touch $(STAMP)
	@echo "make: installed; for a shell of your own: . $(VENV)/bin/activate"

# Exact versions with hashes for Linux and macOS, Python 3.11 to 3.13; how: [tool.uv] in pyproject.toml.
lock:
	uv pip compile --quiet pyproject.toml -o requirements.lock

# Generated files; raw data, the environment and reports stay.
clean:
	rm -rf results logs data/prepared docs/api .snakemake .pytest_cache .ruff_cache .hypothesis build
