"""The sides of `benchmarks.episodes`: a module for each, which runs in a process of its own.

    python -m benchmarks.episode_sides.SIDE [--short]

prints the CPU milliseconds of an episode, repeated. Every side plays the same episode: an opening, a reply that calls
the tool `look`, its result, a reply that ends it. No model is sampled: the replies are ready, so that only the
machinery around them is measured.
"""
