module example.com/frame_oracle

go 1.19
