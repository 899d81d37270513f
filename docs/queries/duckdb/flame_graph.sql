-- The flame graph of a service: a row for each box, parents before children,
-- with its path from the outermost function, what it took itself and with all
-- above it. DuckDB; set first:
--   SET VARIABLE store = 's3://bucket/prefix/v1/raw/**/*.parquet';
--   SET VARIABLE service = 'shop';
--   SET VARIABLE first_day = '2026-11-01'; SET VARIABLE last_day = '2026-11-30';
WITH stacks AS (
    SELECT functions, sum(value) AS value
    FROM read_parquet(getvariable('store'), hive_partitioning = true)
    WHERE date BETWEEN getvariable('first_day')::DATE AND getvariable('last_day')::DATE
      AND service_name = getvariable('service')
      AND event = 'cpu'
    GROUP BY functions
), boxes AS (
    SELECT functions, value, unnest(range(1, len(functions) + 1)) AS depth
    FROM stacks
)
SELECT
    functions[1:depth] AS path,
    depth,
    sum(CASE WHEN depth = len(functions) THEN value ELSE 0 END)::BIGINT AS self_ns,
    sum(value)::BIGINT AS total_ns
FROM boxes
GROUP BY path, depth
ORDER BY path;
