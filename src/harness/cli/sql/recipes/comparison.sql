-- The comparison table of a sweep: mean NLL and perplexity over seeds by label and context length.
-- :sweep = rope_variants   the sweep
-- :method = last_stride    how perplexity was taken: last_stride or prefix
SELECT label, context_length, seeds, mean_nll, perplexity, best_perplexity, worst_perplexity
FROM v_comparison
WHERE sweep = :sweep AND method = :method
ORDER BY label, context_length
