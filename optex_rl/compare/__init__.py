"""Methods side by side over seeds: runs, statistics, tables and plots."""
