-- The finished runs with the lowest last loss.
-- :sweep = NULL   only the points of this sweep
-- :limit = 10     how many
SELECT run_id, sweep, label, seed, last_loss, last_perplexity, tokens, seconds
FROM v_runs
WHERE status = 'finished' AND last_loss IS NOT NULL AND (:sweep IS NULL OR sweep = :sweep)
ORDER BY last_loss, run_id
LIMIT :limit
