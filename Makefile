.PHONY: train test lowest lab notebooks bench wheel setup
train test lowest lab notebooks bench wheel setup:
	python3 run.py $@ $(ARGS)
