"""Reports: from run folders to tables, intervals, figures and one page."""
