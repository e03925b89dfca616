PREFIX = /usr/local
# The system's Python, if there is one: all users have that, and it starts without a shim.
PYTHON = $(firstword $(wildcard /usr/bin/python3) python3)
# What is installed with plash where the system's Python doesn't have it.
BUNDLE = docopt

VENV = .venv
BUILD = build
PYTEST = PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python -m pytest

.PHONY: help demo check test lint bench install install-apparmor uninstall man deb clean

# install.sh reads these from its environment, where no shell splits them.
export PREFIX DESTDIR PYTHON BUNDLE

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 24

demo: ## import, build and run, on an image made of this host's programs
	@sh docs/demo.sh

check: lint ## prepare the test environment, run lint and all tests
	$(PYTEST) $(ARGS)

test: $(VENV)/ready ## run the quick tests; ARGS="-k NAME" chooses
	$(PYTEST) -m "not slow" $(ARGS)

lint: $(VENV)/ready ## run ruff and mypy on the Python, and shellcheck on the shell scripts
	$(VENV)/bin/ruff format --check --quiet
	$(VENV)/bin/ruff check --quiet
	$(VENV)/bin/mypy --no-error-summary
	$(VENV)/bin/shellcheck $$(grep -lE '^#!/bin/(ba)?sh' bin/* libexec/plash-* docs/*.sh .ci/* *.sh) completions/plash.bash

# What the package and its tests need, as setup.cfg lists it.
$(VENV)/ready: setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --use-pep517 $$($(PYTHON) -c 'import configparser as c; \
	    f = c.ConfigParser(); f.read("setup.cfg"); \
	    print(f["options"]["install_requires"], f["options.extras_require"]["test"])')
	touch $@

bench: $(VENV)/ready ## measure plash against what it is built on
	$(VENV)/bin/python bench/bench.py $(ARGS)

install: ## install below PREFIX (/usr/local)
	@sh install.sh

man: ## make the man pages in build/man, with docutils of the system or of .venv
	@for python in $(PYTHON) $(VENV)/bin/python; do \
	    if $$python -c "import docutils" 2>/dev/null; then exec $$python man/generate.py $(BUILD)/man/man1; fi; \
	done; \
	$(MAKE) $(VENV)/ready && exec $(VENV)/bin/python man/generate.py $(BUILD)/man/man1

# A file of its own, since it is for the host's administrator to decide.
install-apparmor: ## let AppArmor allow user namespaces to the installed commands, where it restricts them
	@sh install.sh apparmor

uninstall: ## remove what install put below PREFIX, and the AppArmor profile
	@sh install.sh uninstall

deb: ## build a Debian package in build/
	rm -rf $(BUILD)/deb && mkdir -p $(BUILD)/deb
	tar -c --exclude=./.git --exclude=./$(VENV) --exclude=./$(BUILD) . | tar -x -C $(BUILD)/deb
	version=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' plashlib/__init__.py) && \
	    sed -i "1s/(.*)/($$version)/" $(BUILD)/deb/debian/changelog
	cd $(BUILD)/deb && dpkg-checkbuilddeps -I && dpkg-buildpackage --no-check-builddeps --no-sign --build=binary

clean: ## remove what the other targets made here
	rm -rf $(VENV) $(BUILD) *.egg-info .pytest_cache .mypy_cache .ruff_cache
