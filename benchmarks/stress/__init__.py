"""Many short trainings on data of many kinds: none may fail without saying so."""
