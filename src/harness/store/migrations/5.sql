-- Version 5: where a seed came to no number the mean over the seeds is none either, and so is the worst of them.

DROP VIEW v_comparison;
-- The sweep's comparison table: one row a label, means over seeds of finished runs. NULL where a seed's is NaN.
CREATE VIEW v_comparison AS
SELECT sweep, label, split, method, context_length, count(*) AS seeds, iif(count(nll) = count(*), avg(nll), NULL) AS mean_nll,
       iif(count(nll) = count(*), exp(avg(nll)), NULL) AS perplexity, min(perplexity) AS best_perplexity,
       iif(count(perplexity) = count(*), max(perplexity), NULL) AS worst_perplexity
FROM v_perplexity WHERE status = 'finished' GROUP BY sweep, label, split, method, context_length;
