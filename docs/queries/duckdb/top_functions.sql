-- The functions of a service that take the most CPU time: in themselves, and
-- with all that they call. DuckDB; set first:
--   SET VARIABLE store = 's3://bucket/prefix/v1/raw/**/*.parquet';
--   SET VARIABLE service = 'shop';
--   SET VARIABLE first_day = '2026-11-01'; SET VARIABLE last_day = '2026-11-30';
WITH stacks AS (
    SELECT functions, value
    FROM read_parquet(getvariable('store'), hive_partitioning = true)
    WHERE date BETWEEN getvariable('first_day')::DATE AND getvariable('last_day')::DATE
      AND service_name = getvariable('service')
      AND event = 'cpu'
), frames AS (
    -- A function counts once in a stack, however often it calls itself.
    SELECT unnest(list_distinct(functions)) AS function, functions[-1] AS leaf, value
    FROM stacks
)
SELECT
    function,
    coalesce(sum(value) FILTER (function = leaf), 0)::BIGINT AS self_ns,
    sum(value)::BIGINT AS total_ns,
    round(100 * total_ns / (SELECT sum(value) FROM stacks), 2) AS total_percent
FROM frames
GROUP BY function
ORDER BY self_ns DESC, total_ns DESC, function
LIMIT 100;
