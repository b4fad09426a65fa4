"""`descant doctor`: looks at a deployment from where its gateway runs, and says what is wrong and what to do."""
