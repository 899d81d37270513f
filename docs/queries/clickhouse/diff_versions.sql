-- Two versions of a service: the share of its CPU time that each function took
-- with all that it calls, in one and in the other, the greatest change first.
-- ClickHouse; for s3() in place of file() see top_functions.sql; the versions
-- are --param_before=v1.0.0 --param_after=v1.1.0.
WITH stacks AS (
    SELECT functions, value, module_version = {after:String} AS is_after
    FROM file({store:String}, 'Parquet')
    WHERE toDate(date) BETWEEN {first_day:Date} AND {last_day:Date}
      AND service_name = {service:String}
      AND module_version IN ({before:String}, {after:String})
      AND event = 'cpu'
), frames AS (
    SELECT arrayJoin(arrayDistinct(functions)) AS function, value, is_after
    FROM stacks
)
SELECT
    function,
    sumIf(value, NOT is_after) AS before_ns,
    sumIf(value, is_after) AS after_ns,
    round(100 * (after_ns / (SELECT sumIf(value, is_after) FROM stacks)
        - before_ns / (SELECT sumIf(value, NOT is_after) FROM stacks)), 2) AS change_percent
FROM frames
GROUP BY function
ORDER BY abs(change_percent) DESC, function
LIMIT 100
