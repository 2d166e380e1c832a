-- How much perplexity grows from the trained length to the longest that was evaluated, by label.
-- :sweep = rope_variants   the sweep
-- :method = last_stride    how perplexity was taken: last_stride or prefix
WITH x AS (
  SELECT p.label, p.context_length, CASE WHEN count(p.nll) = count(*) THEN avg(p.nll) END AS nll, max(n.number) AS trained
  FROM v_perplexity p JOIN v_params n ON n.run_id = p.run_id AND n.key = 'train.sequence_length'
  WHERE p.sweep = :sweep AND p.method = :method AND p.status = 'finished'
  GROUP BY p.label, p.context_length
)
SELECT a.label, a.context_length AS trained_length, exp(a.nll) AS perplexity, b.context_length AS longest,
       exp(b.nll) AS perplexity_at_longest, exp(b.nll - a.nll) AS times
FROM x a JOIN x b ON b.label = a.label
WHERE a.context_length = (SELECT max(context_length) FROM x WHERE label = a.label AND context_length <= trained)
  AND b.context_length = (SELECT max(context_length) FROM x WHERE label = a.label)
ORDER BY times IS NULL, times
