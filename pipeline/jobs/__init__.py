"""Jobs: a whole run as a value (source, model, outputs, cluster), and the one function that does it.

`pipeline.jobs.submit` leaves a job on a cluster, `pipeline.jobs.tasks` is what its worker does of it;
`pipeline.jobs.clusters` are the kinds of clusters.
"""

from pipeline.jobs.run import JobResult, run_job
from pipeline.jobs.spec import JobSpec, load_job, parse_job

__all__ = ["JobResult", "JobSpec", "load_job", "parse_job", "run_job"]
