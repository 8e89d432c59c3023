"""Plan and run recipes; see ``docs/recipes.md``."""

from featpipe.pipeline.catalogue import built_in, find_recipe
from featpipe.pipeline.plan import Plan
from featpipe.pipeline.records import Record, RunSummary
from featpipe.pipeline.task import Task

__all__ = ["Plan", "Record", "RunSummary", "Task", "built_in", "find_recipe"]
