"""The recommender wing: data files, training, metrics. An extra (`pip install mgqe[recsys]`); no part of the core."""
