"""Study design: from the stages that a pipeline states to all stages that a comparison needs."""
