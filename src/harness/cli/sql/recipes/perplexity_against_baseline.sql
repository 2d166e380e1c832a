-- By how many nats each label is from a baseline, over the seeds that both have finished. None where one of them is no number.
-- :sweep = rope_variants   the sweep
-- :baseline = rope=plain   the label that the others are compared with
-- :method = last_stride    how perplexity was taken: last_stride or prefix
SELECT x.label, x.context_length, count(*) AS paired_seeds, CASE WHEN count(x.nll - b.nll) = count(*) THEN avg(x.nll - b.nll) END AS nll_difference,
       exp(CASE WHEN count(x.nll - b.nll) = count(*) THEN avg(x.nll - b.nll) END) AS perplexity_ratio
FROM v_perplexity x
JOIN v_perplexity b ON b.sweep = x.sweep AND b.seed = x.seed AND b.split = x.split AND b.method = x.method
  AND b.context_length = x.context_length AND b.label = :baseline
WHERE x.sweep = :sweep AND x.method = :method AND x.label <> :baseline AND x.status = 'finished' AND b.status = 'finished'
GROUP BY x.label, x.context_length
ORDER BY x.context_length, nll_difference IS NULL, nll_difference
