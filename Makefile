.PHONY: train test lab notebooks setup
train test lab notebooks setup:
	python3 run.py $@ $(ARGS)
