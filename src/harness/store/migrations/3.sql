-- What people say of runs: tags and notes. They are kept in labels.json of each run's folder, from which they can be rebuilt.

-- The tags of each run.
CREATE TABLE tags (
    run         INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    tag         TEXT NOT NULL,
    PRIMARY KEY (run, tag)
) STRICT, WITHOUT ROWID;

-- The note on a run.
CREATE TABLE notes (
    run         INTEGER PRIMARY KEY REFERENCES runs (id) ON DELETE CASCADE,
    text        TEXT NOT NULL
) STRICT;

-- One row a run: its tags, joined by commas, and its note.
CREATE VIEW v_labels AS
SELECT r.run_id,
       (SELECT group_concat(tag, ',') FROM (SELECT tag FROM tags WHERE run = r.id ORDER BY tag)) AS tags,
       (SELECT text FROM notes WHERE run = r.id) AS note
FROM runs r;
