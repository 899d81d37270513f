-- Two versions of a service: the share of its CPU time that each function took
-- with all that it calls, in one and in the other, the greatest change first.
-- DuckDB; set first:
--   SET VARIABLE store = 's3://bucket/prefix/v1/raw/**/*.parquet';
--   SET VARIABLE service = 'shop';
--   SET VARIABLE first_day = '2026-11-01'; SET VARIABLE last_day = '2026-11-30';
--   SET VARIABLE before = 'v1.0.0'; SET VARIABLE after = 'v1.1.0';
WITH stacks AS (
    SELECT functions, value, module_version = getvariable('after') AS is_after
    FROM read_parquet(getvariable('store'), hive_partitioning = true)
    WHERE date BETWEEN getvariable('first_day')::DATE AND getvariable('last_day')::DATE
      AND service_name = getvariable('service')
      AND module_version IN (getvariable('before'), getvariable('after'))
      AND event = 'cpu'
), totals AS (
    SELECT
        sum(value) FILTER (NOT is_after) AS before_ns,
        sum(value) FILTER (is_after) AS after_ns
    FROM stacks
), frames AS (
    SELECT unnest(list_distinct(functions)) AS function, value, is_after
    FROM stacks
), functions AS (
    SELECT
        function,
        coalesce(sum(value) FILTER (NOT is_after), 0)::BIGINT AS before_ns,
        coalesce(sum(value) FILTER (is_after), 0)::BIGINT AS after_ns
    FROM frames
    GROUP BY function
)
SELECT
    function,
    functions.before_ns,
    functions.after_ns,
    round(100 * (functions.after_ns / totals.after_ns - functions.before_ns / totals.before_ns), 2)
        AS change_percent
FROM functions, totals
ORDER BY abs(change_percent) DESC, function
LIMIT 100;
