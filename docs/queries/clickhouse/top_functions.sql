-- The functions of a service that take the most CPU time: in themselves, and
-- with all that they call. ClickHouse; for a bucket take
--   s3('https://bucket.s3.region.amazonaws.com/prefix/v1/raw/**/*.parquet', 'Parquet')
-- in place of file(), and give the parameters with --param_service=shop
-- --param_first_day=2026-11-01 --param_last_day=2026-11-30.
WITH frames AS (
    -- A function counts once in a stack, however often it calls itself.
    SELECT arrayJoin(arrayDistinct(functions)) AS function, functions[-1] AS leaf, value
    FROM file({store:String}, 'Parquet')
    WHERE toDate(date) BETWEEN {first_day:Date} AND {last_day:Date}
      AND service_name = {service:String}
      AND event = 'cpu'
)
SELECT
    function,
    sumIf(value, function = leaf) AS self_ns,
    sum(value) AS total_ns
FROM frames
GROUP BY function
ORDER BY self_ns DESC, total_ns DESC, function
LIMIT 100
