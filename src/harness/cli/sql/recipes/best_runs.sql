-- The finished runs with the lowest last loss: held out where there is one, otherwise of the last step.
-- A run of several sweeps is there once, under the first by name.
-- :sweep = NULL   only the points of this sweep
-- :limit = 10     how many
SELECT v.run_id, v.sweep, v.label, v.seed, coalesce(e.value, v.last_loss) AS loss, exp(coalesce(e.value, v.last_loss)) AS perplexity,
       CASE WHEN e.value IS NULL THEN 'training' ELSE 'validation' END AS of, v.tokens, v.seconds
FROM (SELECT *, min(sweep) FROM v_runs WHERE :sweep IS NULL OR sweep = :sweep GROUP BY run_id) v
LEFT JOIN v_last_metrics e ON e.run_id = v.run_id AND e.key = 'eval_loss.validation'
WHERE v.status = 'finished' AND coalesce(e.value, v.last_loss) IS NOT NULL
ORDER BY e.value IS NULL, loss, v.run_id
LIMIT :limit
