-- The flame graph of a service: a row for each box, parents before children,
-- with its path from the outermost function, what it took itself and with all
-- above it. Spark; for `profiles` see top_functions.sql.
WITH boxes AS (
    SELECT functions, value, explode(sequence(1, size(functions))) AS depth
    FROM profiles
    WHERE date BETWEEN :first_day AND :last_day
      AND service_name = :service
      AND event = 'cpu'
      AND size(functions) > 0
)
SELECT
    slice(functions, 1, depth) AS path,
    depth,
    sum(CASE WHEN depth = size(functions) THEN value ELSE 0 END) AS self_ns,
    sum(value) AS total_ns
FROM boxes
GROUP BY path, depth
ORDER BY path
