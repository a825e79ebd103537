.PHONY: train test lab notebooks bench setup
train test lab notebooks bench setup:
	python3 run.py $@ $(ARGS)
