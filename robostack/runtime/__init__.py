"""Acting in time: which of the predicted actions is run at which control step."""
