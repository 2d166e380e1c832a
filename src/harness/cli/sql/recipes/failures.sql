-- The runs that ended without a result, with what they said, newest first.
-- A run of several sweeps is there once, under the first by name.
-- :limit = 20   how many
SELECT run_id, sweep, label, seed, status, step, status_detail, ended_at
FROM (SELECT *, min(sweep) FROM v_runs GROUP BY run_id)
WHERE status IN ('failed', 'killed', 'lost')
ORDER BY coalesce(ended_at, started_at) DESC, run_id
LIMIT :limit
