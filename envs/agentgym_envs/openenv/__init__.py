"""Any server that speaks OpenEnv's protocol, as an environment to train and evaluate on."""
