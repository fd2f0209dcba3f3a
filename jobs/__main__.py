"""`python -m tsdfm.jobs` is `tsdfm-pipeline`."""

from tsdfm.jobs.cli import main

if __name__ == "__main__":
    main()
