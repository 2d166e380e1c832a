-- The comparison table of a sweep: mean NLL and perplexity over the seeds that finished, by label and context length. No mean
-- where one of them is no number.
-- :sweep = rope_variants   the sweep
-- :method = last_stride    how perplexity was taken: last_stride or prefix
SELECT label, context_length, count(*) AS seeds, CASE WHEN count(nll) = count(*) THEN avg(nll) END AS mean_nll,
       exp(CASE WHEN count(nll) = count(*) THEN avg(nll) END) AS perplexity,
       min(perplexity) AS best_perplexity, max(perplexity) AS worst_perplexity
FROM v_perplexity
WHERE sweep = :sweep AND method = :method AND status = 'finished'
GROUP BY label, split, context_length
ORDER BY label, context_length
