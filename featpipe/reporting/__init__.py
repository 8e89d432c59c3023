"""Results as one self-contained HTML page: a function of results, which never trains."""
