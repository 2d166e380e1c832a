-- The runs that began last.
-- A run of several sweeps is there once, under the first by name.
-- :limit = 20   how many
SELECT run_id, sweep, label, seed, status, step, last_loss,
       strftime('%Y-%m-%d %H:%M:%S', started_at, 'unixepoch') AS started
FROM (SELECT *, min(sweep) FROM v_runs GROUP BY run_id)
WHERE started_at IS NOT NULL
ORDER BY started_at DESC, run_id
LIMIT :limit
