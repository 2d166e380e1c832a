-- The runs that ended without a result, with what they said, newest first.
-- :limit = 20   how many
SELECT run_id, sweep, label, seed, status, step, status_detail, ended_at
FROM v_runs
WHERE status IN ('failed', 'killed', 'lost')
ORDER BY coalesce(ended_at, started_at) DESC, run_id
LIMIT :limit
