PREFIX = /usr/local
# The system's Python, if there is one: all users have that, and it starts without a shim.
PYTHON = $(firstword $(wildcard /usr/bin/python3) python3)
# What is installed beside plash; nothing where the system has the package docopt.
BUNDLE = docopt

VENV = .venv
BUILD = build
bindir = $(DESTDIR)$(PREFIX)/bin
libexecdir = $(DESTDIR)$(PREFIX)/libexec/plash
sharedir = $(DESTDIR)$(PREFIX)/share
mandir = $(sharedir)/man
commands = $(notdir $(wildcard libexec/plash-*))

.PHONY: help demo check test lint bench install install-apparmor uninstall deb clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 24

demo: ## import, build and run, on an image made of this host's programs
	@sh docs/demo.sh

check: lint test ## prepare the test environment, run lint and all tests

test: $(VENV)/ready ## run the tests; ARGS="-k NAME" chooses
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python -m pytest $(ARGS)

lint: $(VENV)/ready ## run ruff on the Python and shellcheck on the shell scripts
	$(VENV)/bin/ruff check --quiet
	$(VENV)/bin/shellcheck $$(grep -lE '^#!/bin/(ba)?sh' bin/* libexec/plash-* docs/*.sh .ci/run) completions/plash.bash

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
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9) and "plash needs Python 3.9; make install PYTHON=...")'
	mkdir -p $(bindir) $(libexecdir)/plashlib
	cp libexec/plash-* $(libexecdir)
	cp plashlib/*.py $(libexecdir)/plashlib
	cp bin/plash $(bindir)
	interpreter=$$($(PYTHON) -c 'import sys; print(sys.executable)') && \
	    sed -i "1s|^#!/usr/bin/env python3$$|#!$$interpreter -SE|" $(addprefix "$(libexecdir)"/,$(commands))
	$(PYTHON) -m compileall -q -s "$(DESTDIR)" $(libexecdir)/plashlib
	if [ -n "$(BUNDLE)" ]; then \
	    $(PYTHON) -m venv $(BUILD)/venv && \
	    $(BUILD)/venv/bin/pip install --quiet --disable-pip-version-check --use-pep517 --no-deps --upgrade \
	        --target $(libexecdir) $(BUNDLE); \
	fi
	for command in $(commands); do ln -sf ../libexec/plash/$$command $(bindir)/$$command || exit; done
	install -D -m 644 completions/plash.bash $(sharedir)/bash-completion/completions/plash
	install -D -m 644 completions/_plash $(sharedir)/zsh/site-functions/_plash
	install -D -m 644 completions/plash.fish $(sharedir)/fish/vendor_completions.d/plash.fish
	python=$(PYTHON); \
	if [ -n "$(BUNDLE)" ]; then \
	    python=$(BUILD)/venv/bin/python; \
	    $(BUILD)/venv/bin/pip install --quiet --disable-pip-version-check docutils 2>/dev/null; \
	fi; \
	if $$python -c "import docutils" 2>/dev/null; then $$python man/generate.py $(mandir)/man1; \
	else echo "make install: the man pages are left out: making them needs the Python package docutils"; fi

# A file of its own, since it is for the host's administrator to decide.
install-apparmor: ## let AppArmor allow user namespaces to the installed commands, where it restricts them
	mkdir -p "$(DESTDIR)/etc/apparmor.d"
	sed 's|@libexecdir@|$(abspath $(PREFIX))/libexec/plash|' apparmor/plash >"$(DESTDIR)/etc/apparmor.d/plash"
	@echo "installed $(DESTDIR)/etc/apparmor.d/plash, for $(abspath $(PREFIX))/libexec/plash/plash-*"
	@if [ -n "$(DESTDIR)" ]; then :; \
	elif [ ! -d /sys/kernel/security/apparmor ]; then echo "AppArmor does not run here: it is not loaded"; \
	else apparmor_parser --replace /etc/apparmor.d/plash && echo "loaded; after a reboot it is loaded by itself"; fi

uninstall: ## remove what install put there
	rm -rf $(libexecdir)
	rm -f $(bindir)/plash $(addprefix $(bindir)/,$(commands))
	rm -f $(sharedir)/bash-completion/completions/plash $(sharedir)/zsh/site-functions/_plash \
	    $(sharedir)/fish/vendor_completions.d/plash.fish
	if grep -sqF '"$(abspath $(PREFIX))/libexec/plash/' "$(DESTDIR)/etc/apparmor.d/plash"; then \
	    rm "$(DESTDIR)/etc/apparmor.d/plash"; fi
	rm -f $(mandir)/man1/plash.1 $(addprefix $(mandir)/man1/,$(addsuffix .1,$(commands)))

deb: ## build a Debian package in build/
	rm -rf $(BUILD)/deb && mkdir -p $(BUILD)/deb
	tar -c --exclude=./.git --exclude=./$(VENV) --exclude=./$(BUILD) . | tar -x -C $(BUILD)/deb
	version=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' plashlib/__init__.py) && \
	    sed -i "1s/(.*)/($$version)/" $(BUILD)/deb/debian/changelog
	cd $(BUILD)/deb && dpkg-checkbuilddeps -I && dpkg-buildpackage --no-check-builddeps --no-sign --build=binary

clean: ## remove what the other targets made here
	rm -rf $(VENV) $(BUILD) *.egg-info .pytest_cache
