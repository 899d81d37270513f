-- The functions of a service that take the most CPU time: in themselves, and
-- with all that they call. Spark; `profiles` is
--   spark.read.parquet("s3a://bucket/prefix/v1/raw").createOrReplaceTempView("profiles")
WITH frames AS (
    -- A function counts once in a stack, however often it calls itself.
    SELECT explode(array_distinct(functions)) AS function, element_at(functions, -1) AS leaf, value
    FROM profiles
    WHERE date BETWEEN :first_day AND :last_day
      AND service_name = :service
      AND event = 'cpu'
)
SELECT
    function,
    coalesce(sum(value) FILTER (WHERE function = leaf), 0) AS self_ns,
    sum(value) AS total_ns
FROM frames
GROUP BY function
ORDER BY self_ns DESC, total_ns DESC, function
LIMIT 100
