-- What each sweep took: runs, hours, tokens and steps; a run of two sweeps counts in both.
SELECT coalesce(sweep, '(no sweep)') AS sweep, count(DISTINCT run_id) AS runs, round(sum(seconds) / 3600, 3) AS hours,
       sum(tokens) AS tokens, sum(step) AS steps
FROM v_runs
GROUP BY sweep
ORDER BY hours DESC
