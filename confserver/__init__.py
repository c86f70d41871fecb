"""Items, jobs, policies, pre-flight: the configuration server. It moves no block of data."""
