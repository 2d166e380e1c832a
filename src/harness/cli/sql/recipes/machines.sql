-- The devices that runs were on, with how many runs and hours each had.
SELECT host, device_name, driver, libtorch, count(*) AS runs, round(sum(seconds) / 3600, 3) AS hours
FROM runs
WHERE device_name IS NOT NULL
GROUP BY host, device_name, driver, libtorch
ORDER BY hours DESC, host, device_name
