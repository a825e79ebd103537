"""`python -m patholib` is the command `patholib`."""

from patholib.cli import main

raise SystemExit(main())
