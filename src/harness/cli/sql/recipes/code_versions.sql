-- The versions of the code that runs were made by; git_dirty is 1 where there were changes beyond the commit.
SELECT code_version, git_commit, git_dirty, count(*) AS runs,
       strftime('%Y-%m-%d %H:%M:%S', min(started_at), 'unixepoch') AS first_run,
       strftime('%Y-%m-%d %H:%M:%S', max(started_at), 'unixepoch') AS last_run
FROM runs
WHERE code_version IS NOT NULL
GROUP BY code_version, git_commit, git_dirty
ORDER BY max(started_at) DESC
