-- Mean NLL by position of the prediction, of each label of a sweep.
-- :sweep = rope_variants   the sweep
-- :label = %               only labels like this (% stands for anything)
SELECT v.label, x.start, x."end", sum(x.tokens) AS tokens, 
       CASE WHEN count(x.nll) = count(*) THEN sum(x.nll * x.tokens) / sum(x.tokens) END AS nll
FROM position_nll x JOIN runs r ON r.id = x.run JOIN v_runs v USING (run_id)
WHERE v.sweep = :sweep AND v.label LIKE :label
  AND x.step = (SELECT max(step) FROM position_nll WHERE run = x.run)
GROUP BY v.label, x.start, x."end"
ORDER BY v.label, x.start
