"""Where the parts of a curation run: on this machine, or spread over a cluster by datatrove's executors."""
