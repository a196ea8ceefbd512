# make demo, make test and make lint each make .venv first if it is missing or out of date.
PYTHON ?= $(if $(filter Windows_NT,$(OS)),python,python3)
VENV := .venv
BIN := $(VENV)/bin
TYPED := sam.py models DatasetClass utilities trainings loss_landscape studies

.PHONY: demo test lint clean

ifeq ($(OS),Windows_NT)  # where make runs the lines below with the sh of Git for Windows
BIN := $(VENV)/Scripts
endif

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or newer is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

demo: $(VENV)/installed
	$(BIN)/python demo.py

# Tests marked real need data/; where the data lie ready in ../shared they are laid out first.
# A file's tests share what takes long to make, so each file goes whole to one of the processes.
test: $(VENV)/installed
	if [ -f ../shared/data/prepare.py ]; then $(BIN)/python ../shared/data/prepare.py data; fi
	$(BIN)/python -m pytest -n logical --maxprocesses=4 --dist=loadfile

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(TYPED)
	$(BIN)/shellcheck examples/*.sh

clean:
	rm -rf $(VENV) *.egg-info
