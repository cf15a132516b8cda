"""The experiments of arXiv:2511.11159, one a module; each makes a page."""
