-- The runs that somebody has tagged or noted something about.
-- A run of several sweeps is there once, under the first by name.
-- :tag = NULL   only runs with this tag
SELECT r.run_id, r.sweep, r.label, r.status, r.last_loss, x.tags, x.note
FROM v_labels x JOIN (SELECT *, min(sweep) FROM v_runs GROUP BY run_id) r USING (run_id)
WHERE (x.tags IS NOT NULL OR x.note IS NOT NULL)
  AND (:tag IS NULL OR r.run_id IN (SELECT run_id FROM tags JOIN runs ON runs.id = tags.run WHERE tag = :tag))
ORDER BY r.run_id
