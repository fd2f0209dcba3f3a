"""`python -m tsdfm.jobs` is `tsdfm-pipeline`."""

from tsdfm.jobs.start import main

if __name__ == "__main__":
    main()
